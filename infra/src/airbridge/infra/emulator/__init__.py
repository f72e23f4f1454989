"""AWS on one machine: moto's server, with the gaps closed that Terraform's provider and these policies meet.

    python -m airbridge.infra.emulator --port 5600

Each module in `fixes` closes one service's gaps; each gap has a test that fails on moto as it comes.
"""
