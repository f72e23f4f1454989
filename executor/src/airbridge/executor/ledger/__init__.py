"""The ledger: the control plane's tables of work items, workers and events. Who holds what, until when, under which epoch.

It lives in Airflow's metadata database, so that a result and the row it settles commit in one transaction.
"""
