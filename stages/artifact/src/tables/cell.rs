//! What may stand in a column: how a field's type becomes an Arrow array and back.

use std::sync::Arc;

use anyhow::{Result, anyhow, ensure};
use arrow::array::{
    Array, ArrayRef, BooleanArray, Float32Array, Float64Array, ListArray, StringArray, UInt16Array, UInt32Array,
    UInt64Array,
};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{DataType, Field};

/// A column's type. `read` is given an array of the type that `data_type` names.
pub(crate) trait Cell: Sized {
    const NULLABLE: bool = false;
    fn data_type() -> DataType;
    fn build(values: Vec<Self>) -> ArrayRef;
    fn read(array: &dyn Array) -> Result<Vec<Self>>;
}

macro_rules! primitive_cell {
    ($($rust:ty, $array:ty, $data_type:expr;)*) => {$(
        impl Cell for $rust {
            fn data_type() -> DataType {
                $data_type
            }
            fn build(values: Vec<Self>) -> ArrayRef {
                Arc::new(<$array>::from(values))
            }
            fn read(array: &dyn Array) -> Result<Vec<Self>> {
                ensure!(array.null_count() == 0, "unexpected nulls");
                Ok(downcast::<$array>(array)?.values().to_vec())
            }
        }
        impl Cell for Option<$rust> {
            const NULLABLE: bool = true;
            fn data_type() -> DataType {
                $data_type
            }
            fn build(values: Vec<Self>) -> ArrayRef {
                Arc::new(<$array>::from(values))
            }
            fn read(array: &dyn Array) -> Result<Vec<Self>> {
                Ok(downcast::<$array>(array)?.iter().collect())
            }
        }
        impl Cell for Vec<$rust> {
            fn data_type() -> DataType {
                DataType::List(item_field($data_type))
            }
            fn build(values: Vec<Self>) -> ArrayRef {
                let offsets = OffsetBuffer::from_lengths(values.iter().map(Vec::len));
                let items = <$array>::from(values.concat());
                Arc::new(ListArray::new(item_field($data_type), offsets, Arc::new(items), None))
            }
            fn read(array: &dyn Array) -> Result<Vec<Self>> {
                ensure!(array.null_count() == 0, "unexpected nulls");
                let lists = downcast::<ListArray>(array)?;
                let items = <$rust>::read(lists.values().as_ref())?;
                let ends = lists.offsets().windows(2).map(|pair| (pair[0] as usize, pair[1] as usize));
                ends.map(|(start, end)| Ok(items.get(start..end).ok_or_else(|| anyhow!("a list runs out of its items"))?.to_vec()))
                    .collect()
            }
        }
    )*};
}

primitive_cell! {
    u16, UInt16Array, DataType::UInt16;
    u32, UInt32Array, DataType::UInt32;
    u64, UInt64Array, DataType::UInt64;
    f32, Float32Array, DataType::Float32;
    f64, Float64Array, DataType::Float64;
}

impl Cell for bool {
    fn data_type() -> DataType {
        DataType::Boolean
    }
    fn build(values: Vec<Self>) -> ArrayRef {
        Arc::new(BooleanArray::from(values))
    }
    fn read(array: &dyn Array) -> Result<Vec<Self>> {
        ensure!(array.null_count() == 0, "unexpected nulls");
        Ok(downcast::<BooleanArray>(array)?.values().iter().collect())
    }
}

impl Cell for String {
    fn data_type() -> DataType {
        DataType::Utf8
    }
    fn build(values: Vec<Self>) -> ArrayRef {
        Arc::new(StringArray::from(values))
    }
    fn read(array: &dyn Array) -> Result<Vec<Self>> {
        ensure!(array.null_count() == 0, "unexpected nulls");
        Ok(downcast::<StringArray>(array)?.iter().flatten().map(str::to_owned).collect())
    }
}

fn item_field(data_type: DataType) -> Arc<Field> {
    Arc::new(Field::new("item", data_type, false))
}

fn downcast<A: 'static>(array: &dyn Array) -> Result<&A> {
    array.as_any().downcast_ref().ok_or_else(|| anyhow!("found a column of type {}", array.data_type()))
}
