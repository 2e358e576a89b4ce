"""The demo model and the embedded corpus: plug-ins that come along, found as other people's are."""
