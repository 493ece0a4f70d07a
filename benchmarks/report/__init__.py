"""Showing and comparing: tables, JSON, Markdown, charts, and the check before a release."""
