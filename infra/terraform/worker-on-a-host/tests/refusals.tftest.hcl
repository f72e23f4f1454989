# Calls that the module refuses, and the user data for cloud-init. No host is needed.

variables {
  package = {
    url    = "https://packages.example.com/worker.tar.gz"
    sha256 = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
  }
  gateway_url    = "https://gateway.example.com:8443"
  ca_certificate = "-----BEGIN CERTIFICATE-----\nnot one\n-----END CERTIFICATE-----\n"
  region         = "factory-7"
  name           = "press-1"
  join_method    = "bound_key"
  settings       = { slot_memory_mib = 2048, journal_fsync = true, task_env = "a \"b\"" }
}

run "user_data" {
  command = plan

  assert {
    condition     = yamldecode(output.cloud_init).write_files[0].content == <<-END
      --gateway
      https://gateway.example.com:8443
      --region
      factory-7
      --join
      bound_key
      --name
      press-1
      --set
      journal_fsync=true
      --set
      slot_memory_mib=2048
      --set
      task_env="a \"b\""
    END
    error_message = "the arguments of install.sh are others"
  }

  assert {
    condition     = strcontains(yamldecode(output.cloud_init).runcmd[0][2], var.package.sha256) && startswith(output.cloud_init, "#cloud-config\n")
    error_message = "the user data must verify the package"
  }
}

run "token_is_not_in_user_data" {
  command = plan

  variables {
    join_method = "token"
    join_token  = "secret"
  }

  assert {
    condition     = output.cloud_init == null
    error_message = "the user data would hold the token"
  }
}

run "short_digest" {
  command = plan

  variables {
    package = { file = "worker.tar.gz", sha256 = "abc" }
  }

  expect_failures = [var.package]
}

run "plain_http" {
  command = plan

  variables {
    package = { url = "http://packages.example.com/worker.tar.gz", sha256 = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa" }
  }

  expect_failures = [var.package]
}

run "quote_in_url" {
  command = plan

  variables {
    package = { url = "https://packages.example.com/'; reboot; '", sha256 = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa" }
  }

  expect_failures = [var.package]
}

run "unknown_host_key" {
  command = plan

  variables {
    ssh = { host = "192.0.2.1", host_key = "" }
  }

  expect_failures = [var.ssh]
}

run "key_without_a_name" {
  command = plan

  variables {
    name = null
  }

  expect_failures = [var.join_method]
}

run "role_with_a_token" {
  command = plan

  variables {
    join_method = "aws_iam"
    join_token  = "secret"
  }

  expect_failures = [var.join_token]
}

run "setting_with_a_variable_of_its_own" {
  command = plan

  variables {
    settings = { slots = 2 }
  }

  expect_failures = [var.settings]
}

run "setting_that_is_an_object" {
  command = plan

  variables {
    settings = { prefetch = { a = 1 } }
  }

  expect_failures = [var.settings]
}

run "name_with_a_line_break" {
  command = plan

  variables {
    name = "press-1\n--set\nca_file=x"
  }

  expect_failures = [var.name]
}

run "certificate_that_is_a_path" {
  command = plan

  variables {
    ca_certificate = "/etc/ssl/ca.crt"
  }

  expect_failures = [var.ca_certificate]
}
