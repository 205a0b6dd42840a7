"""The report of finished runs: tables beside the papers' and figures, as one page."""
