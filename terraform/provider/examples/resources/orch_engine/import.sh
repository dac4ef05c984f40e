# By the user_id, with the product's platform key in ORCH_PLATFORM_KEY.
terraform import orch_engine.demo 'demo@example.com'
