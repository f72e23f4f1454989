"""Constructs of the network: VPC, endpoints, load balancers."""
