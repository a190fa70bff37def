-- +goose Up

-- How many rows a model has written, in the transactions that move its checkpoint.
-- Held against what the server counts of a table, it tells that somebody else wrote.
alter table checkpoints add column written bigint not null default 0;

-- What is being built or verified has checkpoints of its own, without the column; it
-- is begun anew.
-- +goose StatementBegin
do $$
declare aside text;
begin
  for aside in select nspname from pg_namespace where nspname like 'building\_%' or nspname like 'verifying\_%' loop
    execute format('drop schema %I cascade', aside);
  end loop;
end $$;
-- +goose StatementEnd
