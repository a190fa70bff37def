-- +goose Up
create table refusals (
  id         text primary key,
  account_id text        not null,
  created_at timestamptz not null,
  actor_kind text        not null,
  actor_id   text        not null,
  via        text        not null,
  ip         text        not null,
  verb       text        not null,
  subject    text        not null,
  code       text        not null,
  field      text        not null,
  message    text        not null
);
create index refusals_listed on refusals (account_id, created_at desc, id desc);
