-- +goose Up
create table accounts (
  id          text primary key,
  name        text        not null,
  rate_limit  int         not null,
  blocked     boolean     not null,
  blocked_for text        not null,
  blocked_at  timestamptz,
  opened_at   timestamptz not null
);
