"""The leaderboard: tables, comparisons, claims, figures, report. Pure functions of records, never torch."""
