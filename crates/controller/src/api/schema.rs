//! JSON schemas of what goes over the API, derived from complete values of the types themselves.
//!
//! Values are walked by a serializer that writes down what it meets: a struct becomes a named schema with its fields, a map one with values of one
//! kind, an enum one of the alternatives met. [`super::samples`] builds the values without leaving any field out, so a field that is added does
//! not compile until it is in the document.

use std::collections::BTreeMap;
use std::fmt::Display;

use serde::ser::{
    self, Serialize, SerializeMap, SerializeSeq, SerializeStruct, SerializeStructVariant, SerializeTuple,
    SerializeTupleStruct, SerializeTupleVariant,
};
use serde_json::{Map, Value, json};

/// Schemas by name, as they are met.
pub(super) type Components = BTreeMap<String, Value>;

/// The schema of a value; structs inside go to `components`.
pub(super) fn of<T: Serialize + ?Sized>(value: &T, components: &mut Components) -> Value {
    value.serialize(Walker { components }).unwrap_or_else(|Unwritable(reason)| json!({ "description": reason }))
}

/// Two schemas of one thing: one that allows both.
fn either(known: Value, other: Value) -> Value {
    if known == other || known.as_object().is_some_and(Map::is_empty) {
        return other;
    }
    let mut all = match known.get("anyOf").and_then(Value::as_array) {
        Some(all) => all.clone(),
        None => vec![known],
    };
    if !all.contains(&other) {
        all.push(other);
    }
    json!({ "anyOf": all })
}

fn enter(components: &mut Components, name: &str, schema: Value) -> Value {
    let known = components.remove(name).unwrap_or_else(|| json!({}));
    components.insert(name.to_owned(), either(known, schema));
    json!({ "$ref": format!("#/components/schemas/{name}") })
}

#[derive(Debug)]
pub(super) struct Unwritable(String);

impl Display for Unwritable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unwritable {}

impl ser::Error for Unwritable {
    fn custom<T: Display>(message: T) -> Self {
        Self(message.to_string())
    }
}

struct Walker<'c> {
    components: &'c mut Components,
}

/// Items of a sequence or values of a map.
struct Items<'c> {
    components: &'c mut Components,
    item: Value,
    map: bool,
    variant: Option<&'static str>,
}

impl Items<'_> {
    fn take<T: Serialize + ?Sized>(&mut self, value: &T) {
        let schema = of(value, self.components);
        let known = std::mem::take(&mut self.item);
        self.item = either(known, schema);
    }

    fn finish(self) -> Value {
        let schema = if self.map {
            json!({ "type": "object", "additionalProperties": self.item })
        } else {
            json!({ "type": "array", "items": self.item })
        };
        match self.variant {
            Some(variant) => one_field(variant, &schema),
            None => schema,
        }
    }
}

fn one_field(name: &str, schema: &Value) -> Value {
    json!({ "type": "object", "required": [name], "properties": { name: schema } })
}

/// Fields of a struct.
struct Fields<'c> {
    components: &'c mut Components,
    name: Option<&'static str>,
    variant: Option<&'static str>,
    properties: Map<String, Value>,
}

impl Fields<'_> {
    fn take<T: Serialize + ?Sized>(&mut self, key: &'static str, value: &T) {
        let schema = of(value, self.components);
        self.properties.insert(key.to_owned(), schema);
    }

    fn finish(self) -> Value {
        let schema = json!({ "type": "object", "properties": self.properties });
        match (self.name, self.variant) {
            (_, Some(variant)) => one_field(variant, &schema),
            (Some(name), None) => enter(self.components, name, schema),
            (None, None) => schema,
        }
    }
}

macro_rules! scalars {
    ($($method:ident: $type:ty => $schema:expr),* $(,)?) => {
        $(fn $method(self, _: $type) -> Result<Value, Unwritable> { Ok($schema) })*
    };
}

impl<'c> ser::Serializer for Walker<'c> {
    type Ok = Value;
    type Error = Unwritable;
    type SerializeSeq = Items<'c>;
    type SerializeTuple = Items<'c>;
    type SerializeTupleStruct = Items<'c>;
    type SerializeTupleVariant = Items<'c>;
    type SerializeMap = Items<'c>;
    type SerializeStruct = Fields<'c>;
    type SerializeStructVariant = Fields<'c>;

    scalars! {
        serialize_bool: bool => json!({ "type": "boolean" }),
        serialize_i8: i8 => json!({ "type": "integer" }),
        serialize_i16: i16 => json!({ "type": "integer" }),
        serialize_i32: i32 => json!({ "type": "integer" }),
        serialize_i64: i64 => json!({ "type": "integer" }),
        serialize_u8: u8 => json!({ "type": "integer", "minimum": 0 }),
        serialize_u16: u16 => json!({ "type": "integer", "minimum": 0 }),
        serialize_u32: u32 => json!({ "type": "integer", "minimum": 0 }),
        serialize_u64: u64 => json!({ "type": "integer", "minimum": 0 }),
        serialize_f32: f32 => json!({ "type": "number" }),
        serialize_f64: f64 => json!({ "type": "number" }),
        serialize_char: char => json!({ "type": "string" }),
        serialize_str: &str => json!({ "type": "string" }),
        serialize_bytes: &[u8] => json!({ "type": "array", "items": { "type": "integer" } }),
    }

    fn serialize_none(self) -> Result<Value, Unwritable> {
        Ok(json!({ "type": "null" }))
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<Value, Unwritable> {
        Ok(either(of(value, self.components), json!({ "type": "null" })))
    }

    fn serialize_unit(self) -> Result<Value, Unwritable> {
        Ok(json!({ "type": "null" }))
    }

    fn serialize_unit_struct(self, _: &'static str) -> Result<Value, Unwritable> {
        self.serialize_unit()
    }

    fn serialize_unit_variant(self, _: &'static str, _: u32, variant: &'static str) -> Result<Value, Unwritable> {
        Ok(json!({ "type": "string", "examples": [variant] }))
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(self, _: &'static str, value: &T) -> Result<Value, Unwritable> {
        value.serialize(self)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<Value, Unwritable> {
        Ok(one_field(variant, &of(value, self.components)))
    }

    fn serialize_seq(self, _: Option<usize>) -> Result<Items<'c>, Unwritable> {
        Ok(Items { components: self.components, item: json!({}), map: false, variant: None })
    }

    fn serialize_tuple(self, _: usize) -> Result<Items<'c>, Unwritable> {
        self.serialize_seq(None)
    }

    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<Items<'c>, Unwritable> {
        self.serialize_seq(None)
    }

    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        _: usize,
    ) -> Result<Items<'c>, Unwritable> {
        Ok(Items { components: self.components, item: json!({}), map: false, variant: Some(variant) })
    }

    fn serialize_map(self, _: Option<usize>) -> Result<Items<'c>, Unwritable> {
        Ok(Items { components: self.components, item: json!({}), map: true, variant: None })
    }

    fn serialize_struct(self, name: &'static str, _: usize) -> Result<Fields<'c>, Unwritable> {
        Ok(Fields { components: self.components, name: Some(name), variant: None, properties: Map::new() })
    }

    fn serialize_struct_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        _: usize,
    ) -> Result<Fields<'c>, Unwritable> {
        Ok(Fields { components: self.components, name: None, variant: Some(variant), properties: Map::new() })
    }
}

macro_rules! items {
    ($($trait:ident::$method:ident),* $(,)?) => {
        $(impl $trait for Items<'_> {
            type Ok = Value;
            type Error = Unwritable;
            fn $method<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Unwritable> {
                self.take(value);
                Ok(())
            }
            fn end(self) -> Result<Value, Unwritable> {
                Ok(self.finish())
            }
        })*
    };
}

items!(
    SerializeSeq::serialize_element,
    SerializeTuple::serialize_element,
    SerializeTupleStruct::serialize_field,
    SerializeTupleVariant::serialize_field,
);

impl SerializeMap for Items<'_> {
    type Ok = Value;
    type Error = Unwritable;
    fn serialize_key<T: Serialize + ?Sized>(&mut self, _: &T) -> Result<(), Unwritable> {
        Ok(())
    }
    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Unwritable> {
        self.take(value);
        Ok(())
    }
    fn end(self) -> Result<Value, Unwritable> {
        Ok(self.finish())
    }
}

macro_rules! fields {
    ($($trait:ident),*) => {
        $(impl $trait for Fields<'_> {
            type Ok = Value;
            type Error = Unwritable;
            fn serialize_field<T: Serialize + ?Sized>(
                &mut self,
                key: &'static str,
                value: &T,
            ) -> Result<(), Unwritable> {
                self.take(key, value);
                Ok(())
            }
            fn end(self) -> Result<Value, Unwritable> {
                Ok(self.finish())
            }
        })*
    };
}

fields!(SerializeStruct, SerializeStructVariant);
