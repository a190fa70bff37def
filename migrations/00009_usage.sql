-- +goose Up

-- How often a key was used cannot be told from a log that has forgotten its oldest entries.
-- When it was used last can, or is as old as they are.
alter table api_key_usage drop column uses;
alter table if exists retired.api_key_usage drop column uses;

-- What is being built or verified is begun anew.
drop schema if exists building_requests cascade;
drop schema if exists verifying_requests cascade;
