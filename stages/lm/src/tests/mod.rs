//! Tests on a small model that the test writes itself, against a forward pass written in the plainest way.

mod families;
mod forward;
mod malformed;
mod mutated;
mod naive;
mod tiny;
mod tokenizer;
