"""The command line: one file a verb. A verb parses, calls the library and prints; it has no logic of its own."""
