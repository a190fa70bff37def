-- +goose Up
create table requests (
  id         text primary key,
  account_id text        not null,
  created_at timestamptz not null,
  actor_kind text        not null,
  actor_id   text        not null,
  via        text        not null,
  ip         text        not null,
  route      text        not null,
  method     text        not null,
  path       text        not null,
  status     int         not null,
  error      text        not null,
  fields     text[]      not null,
  form       text        not null,
  objects    text[]      not null,
  objects_n  int         not null,
  user_agent text        not null,
  took_us    bigint      not null
);
create index requests_listed on requests (account_id, created_at desc, id desc);

create table api_key_usage (
  key_id       text primary key,
  account_id   text        not null,
  last_used_at timestamptz not null,
  uses         bigint      not null
);
