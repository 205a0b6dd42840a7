"""What all other packages use: devices, random keys, files, errors, the console."""
