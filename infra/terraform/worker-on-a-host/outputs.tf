output "cloud_init" {
  description = "cloud-init's user data for hosts that other modules create: it downloads package.url, verifies it and installs the worker. It holds no secret. Null without package.url, and for join method token, whose token would be in it."
  value       = var.package.url == null || var.join_method == "token" ? null : "#cloud-config\n${yamlencode(local.cloud_config)}"
}

output "release_id" {
  description = "Changes with each application of a release or of settings to the host. Null without ssh."
  value       = one(terraform_data.release[*].id)
}
