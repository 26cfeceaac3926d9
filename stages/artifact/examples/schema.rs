//! Prints the JSON Schema of `pipeline.yaml`: `cargo run --release --workspace --example schema > pipeline.schema.json`.

fn main() {
    println!("{}", artifact::config::json_schema());
}
