//! Completes the specification that the framework makes of the routes' types.
//!
//! The framework cannot say a few things that OpenAPI 3.0 has words for. They are added to its
//! document here: the last slash of the contract's path, the options of forms, what may be `null`,
//! which objects take no further fields, and the keys.

use serde_json::{Map, Value, json};

/// The objects of requests that refuse fields which they do not know.
const CLOSED: [&str; 4] = [
    "ClassifyRequest",
    "EmbeddingsRequest",
    "ExplainRequest",
    "ImageReference",
];

/// The fields of requests that may be `null`, which stands for a field that is not there.
const NULLABLE: [(&str, &[&str]); 5] = [
    ("ClassifyImageRequest", &["top_k", "model", "min_known"]),
    (
        "ClassifyRequest",
        &["top_k", "min_probability", "model", "min_known"],
    ),
    ("EmbeddingsRequest", &["normalize"]),
    ("ExplainRequest", &["class", "model", "format", "opacity"]),
    ("ImageReference", &["url", "base64"]),
];

/// Returns the specification as a text. `framework` is the framework's document; `keys` says that
/// requests must carry keys.
///
/// What the framework would write in another form stays as it is, which a test would notice.
pub(super) fn text(framework: &str, keys: bool) -> String {
    let Ok(Value::Object(mut document)) = serde_json::from_str(framework) else {
        return framework.to_owned();
    };
    // Clients take the place of the document for the server.
    document.shift_remove("servers");
    if let Some(paths) = document.get_mut("paths") {
        *paths = with_last_slash(paths.take());
    }
    if let Some(schemas) = pointer(&mut document, &["components", "schemas"]).cloned()
        && let Some(Value::Object(paths)) = document.get_mut("paths")
    {
        for item in paths.values_mut() {
            add_options_to_form(item, &schemas);
        }
    }
    // After the forms, in which nothing can be `null`.
    if let Some(Value::Object(schemas)) = pointer(&mut document, &["components", "schemas"]) {
        complete_schemas(schemas);
    }
    if keys {
        ask_for_keys(&mut document);
    }
    serde_json::to_string_pretty(&document).unwrap_or_else(|_| framework.to_owned())
}

/// Completes the schemas of requests.
fn complete_schemas(schemas: &mut Map<String, Value>) {
    for name in CLOSED {
        if let Some(Value::Object(schema)) = schemas.get_mut(name) {
            schema.insert("additionalProperties".to_owned(), false.into());
        }
    }
    for (name, fields) in NULLABLE {
        let properties = schemas.get_mut(name).and_then(|s| s.get_mut("properties"));
        let Some(Value::Object(properties)) = properties else {
            continue;
        };
        for field in fields {
            if let Some(schema) = properties.get_mut(*field) {
                make_nullable(schema);
            }
        }
    }
    if let Some(Value::Object(schema)) = schemas.get_mut("ImageReference") {
        schema.insert("not".to_owned(), both_or_neither(["url", "base64"]));
    }
    let class = schemas
        .get_mut("ExplainRequest")
        .and_then(|s| s.pointer_mut("/properties/class"));
    if let Some(Value::Object(class)) = class {
        let text = json!({ "type": class.shift_remove("type"), "nullable": class.shift_remove("nullable") });
        let index = json!({ "type": "integer", "minimum": 0 });
        class.insert("oneOf".to_owned(), json!([text, index]));
    }
}

/// Adds the options of the JSON form of a request to its form. Files may have any name there, but
/// `image` is the one that the specification knows.
fn add_options_to_form(item: &mut Value, schemas: &Value) {
    let Some(Value::Object(content)) = item.pointer_mut("/post/requestBody/content") else {
        return;
    };
    let json = content.values().find_map(|media| {
        let reference = media.pointer("/schema/$ref")?.as_str()?;
        schemas.get(reference.rsplit_once('/')?.1)
    });
    let Some(Value::Object(options)) = json.and_then(|schema| schema.get("properties")) else {
        return;
    };
    let options = options.clone().into_iter();
    let options = options.filter(|(name, _)| name != "images");
    let Some(Value::Object(form)) = content
        .get_mut("multipart/form-data")
        .and_then(|media| media.get_mut("schema"))
    else {
        return;
    };
    if let Some(Value::Object(properties)) = form.get_mut("properties") {
        properties.extend(options);
    }
    form.insert("additionalProperties".to_owned(), false.into());
}

/// Restores the last slash of the contract's path. Applications know the path with it, and the
/// framework drops it from every path.
fn with_last_slash(paths: Value) -> Value {
    let Value::Object(paths) = paths else {
        return paths;
    };
    let restored = paths.into_iter().map(|(path, item)| match path.as_str() {
        "/classify_image" => ("/classify_image/".to_owned(), item),
        _ => (path, item),
    });
    Value::Object(restored.collect())
}

fn pointer<'a>(document: &'a mut Map<String, Value>, path: &[&str]) -> Option<&'a mut Value> {
    let (first, rest) = path.split_first()?;
    let value = document.get_mut(*first)?;
    rest.iter()
        .try_fold(value, |value, name| value.get_mut(*name))
}

/// Says of a schema that it may be `null`. Nothing may stand beside a reference, so a reference is
/// put into a schema of its own.
fn make_nullable(schema: &mut Value) {
    if schema.get("$ref").is_some() {
        let reference = schema.take();
        *schema = json!({ "allOf": [reference] });
    }
    if let Value::Object(schema) = schema {
        schema.insert("nullable".to_owned(), true.into());
    }
}

/// Describes the objects in which both or neither of two fields are texts. In a reference to an image
/// one is a text, and the other one is `null` or not there.
fn both_or_neither(fields: [&str; 2]) -> Value {
    let all = |schema: Value| {
        Value::Object(
            fields
                .map(|f| (f.to_owned(), schema.clone()))
                .into_iter()
                .collect(),
        )
    };
    let text = json!({ "type": "string" });
    let both = json!({ "required": fields, "properties": all(text.clone()) });
    let neither = json!({ "properties": all(json!({ "not": text })) });
    json!({ "anyOf": [both, neither] })
}

/// Describes the keys, and asks for one on every route but those of probes.
fn ask_for_keys(document: &mut Map<String, Value>) {
    if let Some(Value::Object(components)) = document.get_mut("components") {
        let schemes = json!({
            "bearer": { "type": "http", "scheme": "bearer" },
            "header": { "type": "apiKey", "in": "header", "name": "X-API-Key" },
        });
        components.insert("securitySchemes".to_owned(), schemes);
    }
    document.insert(
        "security".to_owned(),
        json!([{ "bearer": [] }, { "header": [] }]),
    );
    let Some(Value::Object(paths)) = document.get_mut("paths") else {
        return;
    };
    for (_, item) in paths
        .iter_mut()
        .filter(|(path, _)| path.starts_with("/health/"))
    {
        if let Some(Value::Object(get)) = item.get_mut("get") {
            get.insert("security".to_owned(), json!([]));
        }
    }
}
