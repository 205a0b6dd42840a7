"""Networks of other libraries as the package's: one file per library."""
