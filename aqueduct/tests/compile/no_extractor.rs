use aqueduct::{Key, Router};

struct Order;

async fn handle(_key: Key, _order: Order) {}

fn main() {
    let _: Router = Router::new().on("order.placed", handle);
}
