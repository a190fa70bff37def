-- +goose Up
-- +goose StatementBegin
do $$
begin
  if not exists (select from pg_roles where rolname = 'postbook_projector') then
    create role postbook_projector nologin;
  end if;
  if not exists (select from pg_roles where rolname = 'postbook_reader') then
    create role postbook_reader nologin;
  end if;
exception when insufficient_privilege then
  raise exception 'the roles postbook_projector and postbook_reader are missing, and this user may not create them; see docs/operate.md';
end $$;
-- +goose StatementEnd

grant usage on schema public to postbook_projector, postbook_reader;
alter default privileges in schema public grant select, insert, update, delete, truncate on tables to postbook_projector;
alter default privileges in schema public grant select on tables to postbook_reader;

-- How far each read model has read each log. It moves in the transaction that
-- writes the model's rows.
create table checkpoints (
  model      text   not null,
  log        text   not null,
  version    int    not null,
  seq        bigint not null default 0,
  error      text   not null default '',
  primary key (model, log)
);
