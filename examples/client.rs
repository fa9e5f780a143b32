//! Classifies a picture by a running service; docs/clients.md shows it.

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let service = std::env::var("IMGCLASS_URL")?;
    let picture = std::env::args().nth(1).ok_or("name a picture")?;
    let answer = reqwest::Client::new()
        .post(format!("{service}/v1/classify?top_k=1"))
        .header("content-type", "application/octet-stream")
        .body(std::fs::read(picture)?)
        .send()
        .await?
        .error_for_status()?;
    let answer: serde_json::Value = serde_json::from_slice(&answer.bytes().await?)?;
    let best = &answer["results"][0]["predictions"][0];
    println!("{} {}", best["label"], best["probability"]);
    Ok(())
}
