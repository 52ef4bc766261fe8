//! The description for machines: Croissant 1.0 (MLCommons), which readers know best.

use arrow_schema::{DataType, Field};
use serde_json::{Map, Value as Json, json};

use super::{CardTable, Params, SplitFile};

/// What the words of the document mean.
fn context() -> Json {
    json!({
        "@language": "en", "@vocab": "https://schema.org/", "citeAs": "cr:citeAs", "column": "cr:column",
        "conformsTo": "dct:conformsTo", "cr": "http://mlcommons.org/croissant/",
        "rai": "http://mlcommons.org/croissant/RAI/", "data": { "@id": "cr:data", "@type": "@json" },
        "dataType": { "@id": "cr:dataType", "@type": "@vocab" }, "dct": "http://purl.org/dc/terms/",
        "equivalentProperty": "cr:equivalentProperty",
        "examples": { "@id": "cr:examples", "@type": "@json" }, "extract": "cr:extract", "field": "cr:field",
        "fileProperty": "cr:fileProperty", "fileObject": "cr:fileObject", "fileSet": "cr:fileSet",
        "format": "cr:format", "includes": "cr:includes", "isLiveDataset": "cr:isLiveDataset",
        "jsonPath": "cr:jsonPath", "key": "cr:key", "md5": "cr:md5", "parentField": "cr:parentField",
        "path": "cr:path", "recordSet": "cr:recordSet", "references": "cr:references", "regex": "cr:regex",
        "repeated": "cr:repeated", "replace": "cr:replace", "samplingRate": "cr:samplingRate", "sc": "https://schema.org/",
        "separator": "cr:separator", "source": "cr:source", "subField": "cr:subField",
        "transform": "cr:transform",
    })
}

/// The document: a file object and a record set for each file.
pub(super) fn describe(params: &Params, tables: &[CardTable]) -> Json {
    let files: Vec<(&CardTable, &SplitFile)> =
        tables.iter().flat_map(|table| table.files.iter().map(move |file| (table, file))).collect();
    let mut document = Map::new();
    let mut set = |name: &str, value: Json| _ = document.insert(name.to_owned(), value);
    set("@context", context());
    set("@type", "sc:Dataset".into());
    set("conformsTo", "http://mlcommons.org/croissant/1.0".into());
    set("name", params.name.clone().into());
    let given = [
        ("description", &params.description),
        ("license", &params.licence),
        ("citeAs", &params.citation),
        ("url", &params.url),
    ];
    for (name, value) in given.into_iter().filter(|(_, value)| !value.is_empty()) {
        set(name, value.clone().into());
    }
    set("distribution", files.iter().map(|(_, file)| file_object(file)).collect());
    set("recordSet", files.iter().map(|(table, file)| record_set(table, file)).collect());
    Json::Object(document)
}

fn file_id(file: &SplitFile) -> String {
    format!("file-{}-{}", file.table, file.split)
}

fn file_object(file: &SplitFile) -> Json {
    json!({
        "@type": "cr:FileObject", "@id": file_id(file), "name": file_id(file), "contentUrl": file.path,
        "contentSize": format!("{} B", file.bytes), "encodingFormat": "application/x-parquet", "sha256": file.sha256,
    })
}

fn record_set(table: &CardTable, file: &SplitFile) -> Json {
    let id = format!("{}-{}", file.table, file.split);
    let fields: Vec<Json> =
        table.schema.fields().iter().filter_map(|column| field(&id, &file_id(file), column)).collect();
    json!({
        "@type": "cr:RecordSet", "@id": id, "name": id,
        "description": format!("{} rows of {}, split {}", file.rows, file.table, file.split), "field": fields,
    })
}

/// A column; none of a type that Croissant has no word for.
fn field(record_set: &str, file: &str, column: &Field) -> Option<Json> {
    let id = format!("{record_set}/{}", column.name());
    let mut source = json!({ "fileObject": { "@id": file }, "extract": { "column": column.name() } });
    let (data_type, repeated) = match column.data_type() {
        DataType::Struct(_) => {
            source["transform"] = json!({ "jsonPath": "bytes" });
            ("sc:ImageObject", false)
        }
        DataType::List(item) | DataType::FixedSizeList(item, _) => (plain(item.data_type())?, true),
        other => (plain(other)?, false),
    };
    let mut field = json!({
        "@type": "cr:Field", "@id": id, "name": id, "dataType": data_type, "source": source,
    });
    if repeated {
        field["repeated"] = true.into();
    }
    Some(field)
}

fn plain(data_type: &DataType) -> Option<&'static str> {
    match data_type {
        DataType::Utf8 | DataType::LargeUtf8 => Some("sc:Text"),
        DataType::Dictionary(_, value) => plain(value),
        DataType::Boolean => Some("sc:Boolean"),
        DataType::Float32 | DataType::Float64 => Some("sc:Float"),
        other if other.is_integer() => Some("sc:Integer"),
        _ => None,
    }
}
