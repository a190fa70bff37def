-- +goose Up
create table domains (
  id          text primary key,
  account_id  text        not null,
  name        text        not null,
  status      text        not null,
  created_at  timestamptz not null,
  region      text        not null,
  return_path text        not null,
  selector    text        not null,
  public_key  text        not null,
  vouched     boolean     not null,
  results     jsonb,
  settings    jsonb       not null
);
create index domains_listed on domains (account_id, created_at desc, id desc);
