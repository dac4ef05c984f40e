# Nomad's servers. They elect a leader when three are there.
server {
  enabled           = true
  bootstrap_expect  = 3
  event_buffer_size = 10000 # the event stream does not report gaps

  # Engines are frozen for a shorter time while their brains are copied.
  default_scheduler_config {
    memory_oversubscription_enabled = true
  }
}
