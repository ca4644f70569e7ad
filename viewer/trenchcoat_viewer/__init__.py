"""The viewer: a small web server with the reports of all Trenchcoats that one may see, as they go on."""
