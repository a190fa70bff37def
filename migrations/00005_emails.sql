-- +goose Up
create table emails (
  id           text primary key,
  account_id   text        not null,
  created_at   timestamptz not null,
  sender_id    text        not null,
  message_id   text        not null,
  envelope     bytea       not null,
  content      jsonb       not null,
  last_event   text        not null,
  scheduled_at timestamptz,
  log          text        not null,
  last_seq     bigint      not null
) with (fillfactor = 80);
create index emails_listed on emails (account_id, created_at desc, id desc);
