"""Rules for the manifests: what their own schemas cannot say."""
