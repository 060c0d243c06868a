"""The database: tables, migrations, the writer that loses nothing, and the rows of each kind."""
