# Makes the configuration of the package from config.example.toml: it pins nothing at first.
s/^#dry_run = false$/# The package begins with true: look at `emupool plan`. If that is what you want, set it to\
# false, then: systemctl reload emupool\
dry_run = true/
