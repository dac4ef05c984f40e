# Consul's servers. They elect a leader when three are there.
server           = true
bootstrap_expect = 3
