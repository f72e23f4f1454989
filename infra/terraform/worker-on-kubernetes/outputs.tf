output "release_name" {
  description = "Name of the Helm release."
  value       = helm_release.this.name
}

output "namespace" {
  description = "Namespace of the release."
  value       = helm_release.this.namespace
}

output "service_account_name" {
  description = "Service account of the pods, which the gateway's join_issuers_file names for join method kubernetes."
  value       = coalesce(var.service_account.name, var.service_account.create == false ? "default" : local.full_name)
}

output "stateful_set_name" {
  description = "StatefulSet of the workers: its pods are <name>-0, <name>-1 and so on."
  value       = local.full_name
}

output "values" {
  description = "Documents of values that the release was made with, the last taking precedence."
  value       = local.values
}
