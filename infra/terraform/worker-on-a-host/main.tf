locals {
  # Arguments of install.sh, one a line.
  arguments = concat(
    ["--gateway", var.gateway_url, "--region", var.region, "--join", var.join_method],
    var.pool == null ? [] : ["--pool", var.pool],
    var.name == null ? [] : ["--name", var.name],
    var.slots == null ? [] : ["--slots", tostring(var.slots)],
    # A text, number or boolean of JSON is one of TOML, too.
    flatten([for name in sort(keys(var.settings)) : ["--set", "${name}=${jsonencode(var.settings[name])}"]]),
  )
  settings = "${join("\n", local.arguments)}\n"
  # What an application installs anew. The token itself is ephemeral, so its version stands for it.
  settings_digest = sha256(jsonencode([local.settings, trimspace(var.ca_certificate), var.join_token_version]))

  # In the user's home: in /tmp, other users of the host could take the names first.
  remote = "./.airbridge-terraform"
  # Terraform writes the scripts that it runs with mode 0777, so the home must be closed to others. It leaves them there, empty.
  prepare = [
    "[ $(($(stat -c %a .) % 2)) = 0 ] || { echo \"airbridge: preparing: other users can enter $PWD, and could change what Terraform runs there: chmod o-x $PWD\" >&2; exit 1; }",
    "rm -f ./.airbridge-terraform-*.sh",
    "mkdir -p -m 0700 ./.airbridge-terraform",
  ]
  as_root = {
    for action in ["unpack", "apply", "remove"] : action => "${try(var.ssh.sudo, true) ? "sudo -n " : ""}sh ${local.remote}/worker.sh ${action}"
  }
}

# The worker on the host. Its destruction drains and removes the worker; its connection is in its input, because a destroy
# provisioner can refer to nothing else.
resource "terraform_data" "worker" {
  count = var.ssh == null ? 0 : 1

  triggers_replace = [var.ssh.host, var.ssh.port]
  input = {
    host             = var.ssh.host
    timeout          = var.ssh.timeout
    port             = var.ssh.port
    user             = var.ssh.user
    host_key         = var.ssh.host_key
    private_key_file = var.ssh.private_key_file
    bastion_host     = var.ssh.bastion_host
    bastion_host_key = var.ssh.bastion_host_key
    bastion_user     = var.ssh.bastion_user
    prepare          = local.prepare
    remove           = "${local.as_root["remove"]}${var.purge_on_destroy ? " --purge" : ""}"
  }

  connection {
    type                = "ssh"
    timeout             = self.input.timeout
    host                = self.input.host
    port                = self.input.port
    user                = self.input.user
    host_key            = self.input.host_key
    agent               = self.input.private_key_file == null
    private_key         = try(file(pathexpand(self.input.private_key_file)), null)
    bastion_host        = self.input.bastion_host
    bastion_host_key    = self.input.bastion_host_key
    bastion_user        = self.input.bastion_user
    bastion_private_key = self.input.bastion_host == null ? null : try(file(pathexpand(self.input.private_key_file)), null)
    script_path         = "./.airbridge-terraform-%RAND%.sh"
  }

  provisioner "remote-exec" {
    when   = destroy
    inline = self.input.prepare
  }

  provisioner "file" {
    when        = destroy
    source      = "${path.module}/scripts/worker.sh"
    destination = "./.airbridge-terraform/worker.sh"
  }

  provisioner "remote-exec" {
    when   = destroy
    inline = ["set -e", self.input.remove, "rm -rf ./.airbridge-terraform"]
  }
}

# The package: copied or downloaded, verified and unpacked. Nothing of the worker changes.
resource "terraform_data" "package" {
  count = var.ssh == null ? 0 : 1

  triggers_replace = [terraform_data.worker[0].id, var.package.sha256]

  connection {
    type                = "ssh"
    timeout             = var.ssh.timeout
    host                = var.ssh.host
    port                = var.ssh.port
    user                = var.ssh.user
    host_key            = var.ssh.host_key
    agent               = var.ssh.private_key_file == null
    private_key         = try(file(pathexpand(var.ssh.private_key_file)), null)
    bastion_host        = var.ssh.bastion_host
    bastion_host_key    = var.ssh.bastion_host_key
    bastion_user        = var.ssh.bastion_user
    bastion_private_key = var.ssh.bastion_host == null ? null : try(file(pathexpand(var.ssh.private_key_file)), null)
    script_path         = "./.airbridge-terraform-%RAND%.sh"
  }

  provisioner "remote-exec" {
    inline = local.prepare
  }

  provisioner "file" {
    source      = "${path.module}/scripts/worker.sh"
    destination = "${local.remote}/worker.sh"
  }

  # With a URL there is nothing to copy, and a provisioner cannot be left out.
  provisioner "file" {
    source      = var.package.file == null ? "${path.module}/versions.tf" : pathexpand(var.package.file)
    destination = "${local.remote}/package.tar.gz"
  }

  provisioner "remote-exec" {
    inline = ["${local.as_root["unpack"]} ${var.package.sha256} ${local.remote}/package.tar.gz ${var.package.file == null ? "'${var.package.url}'" : ""}"]
  }

  lifecycle {
    precondition {
      condition     = var.package.file == null || try(filesha256(pathexpand(var.package.file)) == var.package.sha256, !fileexists(pathexpand(var.package.file)))
      error_message = "package.file ${coalesce(var.package.file, "-")} has not the SHA-256 ${var.package.sha256}: it is another release, or damaged."
    }
  }
}

# The release and the settings that the worker runs with. Its replacement upgrades the worker, or installs it anew.
resource "terraform_data" "release" {
  count = var.ssh == null ? 0 : 1

  triggers_replace = [terraform_data.package[0].id, local.settings_digest]

  connection {
    type                = "ssh"
    timeout             = var.ssh.timeout
    host                = var.ssh.host
    port                = var.ssh.port
    user                = var.ssh.user
    host_key            = var.ssh.host_key
    agent               = var.ssh.private_key_file == null
    private_key         = try(file(pathexpand(var.ssh.private_key_file)), null)
    bastion_host        = var.ssh.bastion_host
    bastion_host_key    = var.ssh.bastion_host_key
    bastion_user        = var.ssh.bastion_user
    bastion_private_key = var.ssh.bastion_host == null ? null : try(file(pathexpand(var.ssh.private_key_file)), null)
    script_path         = "./.airbridge-terraform-%RAND%.sh"
  }

  provisioner "remote-exec" {
    inline = local.prepare
  }

  provisioner "file" {
    source      = "${path.module}/scripts/worker.sh"
    destination = "${local.remote}/worker.sh"
  }

  provisioner "file" {
    content     = local.settings
    destination = "${local.remote}/arguments"
  }

  provisioner "file" {
    content     = var.ca_certificate
    destination = "${local.remote}/ca.crt"
  }

  provisioner "file" {
    content     = var.join_token == null ? "" : var.join_token
    destination = "${local.remote}/join.token"
  }

  provisioner "remote-exec" {
    inline = ["${local.as_root["apply"]} ${var.package.sha256} ${local.settings_digest} ${local.remote}"]
  }
}

locals {
  # On a tmpfs that only root can write to; gone after the next boot.
  seed = "/run/airbridge-terraform-seed"
  install = [
    "sh ${local.seed}/worker.sh unpack ${var.package.sha256} ${local.seed}/package.tar.gz '${coalesce(var.package.url, "-")}'",
    "sh ${local.seed}/worker.sh apply ${var.package.sha256} ${local.settings_digest} ${local.seed}",
  ]
  cloud_config = {
    write_files = [
      for name, content in {
        "worker.sh"  = file("${path.module}/scripts/worker.sh")
        "arguments"  = local.settings
        "ca.crt"     = var.ca_certificate
        "join.token" = ""
      } : { path = "${local.seed}/${name}", permissions = "0600", content = content }
    ]
    runcmd = [["sh", "-c", join(" && ", local.install)]]
  }
}
