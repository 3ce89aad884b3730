"""Bad input of all kinds: a named error, never a crash or a hang. ``make fuzz`` goes on where the suite stops."""
