package main

import (
	"context"
	"database/sql"
	"fmt"

	"github.com/endsession/endsession/server/store/postgres/pgtest"
)

// servePostgres is serve with a journal in a schema of its own on PostgreSQL. The setup's name is the schema's, too. Where
// there is no PostgreSQL the error is [pgtest.ErrMissing].
func (s *stand) servePostgres(ctx context.Context, set setup) (*gateway, error) {
	if s.postgres == nil {
		cluster, err := pgtest.Start(pgtest.Durable())
		if err != nil {
			return nil, err
		}
		s.postgres = cluster
		if err := s.mustBeDurable(ctx); err != nil {
			return nil, err
		}
	}
	db, err := sql.Open("pgx", s.postgres.DSN("public").Reveal())
	if err != nil {
		return nil, err
	}
	defer func() { _ = db.Close() }()
	if _, err := db.ExecContext(ctx, `CREATE SCHEMA `+set.name); err != nil {
		return nil, err
	}
	set.dsn = s.postgres.DSN(set.name).Reveal()
	return s.serve(ctx, set)
}

// mustBeDurable refuses a server that answers before what it was told is on the disk.
func (b *bench) mustBeDurable(ctx context.Context) error {
	db, err := sql.Open("pgx", b.postgres.DSN("public").Reveal())
	if err != nil {
		return err
	}
	defer func() { _ = db.Close() }()
	for _, setting := range []string{"fsync", "synchronous_commit", "full_page_writes"} {
		var value string
		if err := db.QueryRowContext(ctx, `SHOW `+setting).Scan(&value); err != nil {
			return err
		}
		if value != "on" {
			return fmt.Errorf("PostgreSQL: %s is %s", setting, value)
		}
	}
	return nil
}

func (b *bench) removePostgres() {
	if b.postgres != nil {
		b.postgres.Remove()
	}
}
