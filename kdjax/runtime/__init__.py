"""What all packages may use: devices, random keys, files, errors, the console."""
