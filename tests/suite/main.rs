//! The pipeline as its users meet it: whole runs of the stages' programs. They must have been built before:
//! `cargo build --release --workspace`, as `make test` does.

mod compared;
mod end_to_end;
mod faults;
mod imported;
mod own_activations;
mod own_model;
mod planted;
mod pretrained;
mod reproducible;
mod shipped_files;
mod training;
mod up_to_date;
