"""Front doors shared by the server and the API inside an engine's process."""
