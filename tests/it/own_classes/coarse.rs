//! Coarse classes of the reference photographs, by the WordNet ids that are their names.
//!
//! WordNet numbers animals and food by kinds, so a range of ids is a class. Artefacts are in the
//! order of the alphabet, so those are listed.

use std::path::Path;

/// Ranges of ids, both ends included, with their class.
const RANGES: [(&str, &str, &str); 8] = [
    ("n01503061", "n01622779", "bird"),
    ("n01791625", "n01860497", "bird"),
    ("n01990800", "n02058221", "bird"),
    ("n01660000", "n01756291", "reptile"),
    ("n02085620", "n02113978", "dog"),
    ("n02165000", "n02281999", "insect"),
    ("n07580000", "n07890000", "food"),
    ("n02391049", "n02437616", "ungulate"),
];

/// Ids of the other classes.
const LISTS: [(&str, &str); 9] = [
    (
        "building",
        "n02727426 n02776631 n02793495 n02894605 n03042490 n03160309 n03240683 n03457902 n04326547 n04443257 n04462240 n04562935 n04613696",
    ),
    (
        "clothing",
        "n02669723 n02837789 n02916936 n03000247 n03124170 n03379051 n03424325 n03595614 n03623198 n03680355 n03770439 n03929855 n03980874 n04120489 n04136333",
    ),
    (
        "device",
        "n02965783 n02977058 n02988304 n03196217 n03271574 n03297495 n03485407 n03584254 n03642806 n03706229 n03759954 n03841143 n03995372 n04009552 n04044716 n04243546 n04264628",
    ),
    ("fish", "n01440764 n01496331 n02526121 n02641379"),
    (
        "furniture",
        "n02808440 n03018349 n03131574 n04033995 n04070727 n04099969 n04590129",
    ),
    ("monkey", "n02480495 n02484975 n02488702 n02493509"),
    (
        "predator",
        "n02077923 n02114548 n02116738 n02120505 n02124075 n02128925 n02133161 n02444819",
    ),
    (
        "ungulate",
        "n02391049 n02403003 n02417914 n02437616 n02504013",
    ),
    (
        "vehicle",
        "n02692877 n02860847 n03095699 n03345487 n03393912 n03445924 n03496892 n03662601 n03776460 n03785016 n03791053 n03796401 n03868242 n03895866 n04147183 n04310018 n04482393 n04509417 n04552348",
    ),
];

/// Returns a table of the photographs in `folder` that belong to one of `classes`.
pub(crate) fn table(folder: &Path, classes: &[&str]) -> String {
    let mut table = "file\tclass\n".to_owned();
    let files = folder
        .read_dir()
        .expect("a folder")
        .map(|entry| entry.expect("an entry"));
    let mut names: Vec<String> = files
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    for name in names {
        let wnid = name.strip_suffix(".jpg").unwrap_or_default();
        if let Some(class) = class_of(wnid).filter(|class| classes.contains(class)) {
            table += &format!("{name}\t{class}\n");
        }
    }
    table
}

fn class_of(wnid: &str) -> Option<&'static str> {
    let listed = LISTS
        .iter()
        .find(|(_, ids)| !wnid.is_empty() && ids.split(' ').any(|id| id == wnid));
    let in_range = || {
        RANGES
            .iter()
            .find(|(from, to, _)| (*from..=*to).contains(&wnid))
    };
    listed
        .map(|(class, _)| *class)
        .or_else(|| in_range().map(|(.., class)| *class))
}
