use aqueduct::{Event, Result, Router};

fn handle(_: Event) -> Result<()> {
    Ok(())
}

fn main() {
    let _: Router = Router::new().on("order.placed", handle);
}
