# By the product's slug, or by its id. The platform key stays as it is.
terraform import orch_product.acme acme
