//! Prints the JSON Schema of `pipeline.yaml`: `cargo run --release --example schema > pipeline.schema.json`.

fn main() {
    println!("{}", artifact::config::json_schema());
}
