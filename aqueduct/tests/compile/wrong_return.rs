use aqueduct::{Event, Router};

async fn handle(event: Event) -> usize {
    event.size()
}

fn main() {
    let _: Router = Router::new().on("order.placed", handle);
}
