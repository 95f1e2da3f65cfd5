"""Measuring long videos: metrics that stream, suites, a runner that resumes, and reports."""
