# A Rack app as people write them: it knows nothing of sockets, its server does.
require "json"

whoami = JSON.generate(
  slot: ENV["HOMESCAR_SLOT"],
  generation: ENV["HOMESCAR_GENERATION"].to_i,
  pid: Process.pid
)

run ->(_env) { [200, { "content-type" => "application/json" }, [whoami]] }
