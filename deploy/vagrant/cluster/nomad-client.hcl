# Nomad's clients, which run engines and orch.
client {
  enabled = true

  # Nomad must not query the metadata services of clouds.
  options {
    "fingerprint.denylist" = "env_aws,env_gce,env_azure,env_digitalocean"
  }

  # orch drains for some minutes. With the default, Nomad would kill it after 30 s.
  max_kill_timeout = "5m"

  # 0 means without a limit. Otherwise the client kills its tasks after some minutes without
  # Vault or a server.
  template {
    vault_retry {
      attempts = 0
    }
    consul_retry {
      attempts = 0
    }
    nomad_retry {
      attempts = 0
    }
  }
}

plugin "docker" {
  config {
    # Images are built on this machine, so one that was removed could not be pulled again.
    gc {
      image = false
    }
  }
}

# orch itself.
plugin "raw_exec" {
  config {
    enabled = true
  }
}
