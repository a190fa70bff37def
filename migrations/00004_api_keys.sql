-- +goose Up
create table api_keys (
  id         text primary key,
  account_id text        not null,
  name       text        not null,
  permission text        not null,
  sender_id  text        not null,
  hint       text        not null,
  created_at timestamptz not null
);
create index api_keys_listed on api_keys (account_id, created_at desc, id desc);
