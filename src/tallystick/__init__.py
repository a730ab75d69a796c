"""tallystick: the tamper-evident audit log for automation that runs on local AI."""
