"""A virtual NUMA host, booted for the tests: see README.md beside this file."""
