"""Alerts: what findings become, who is told of them, and what outlives a monitor.

Pure are `alerts`, `book`, `inbox`, `matching`, `silences`, `grouping`, `messages`, `happenings`
and `settings`; around them stand `keeping` (storage), `sending` (receivers), `tailing` (the
leader's events) and `desk`, which puts them together.
"""
